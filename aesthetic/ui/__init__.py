"""A page to draw on, in a browser: `aesthetic ui`.

It turns clicks into Requests and shows the answers of one Service; what they mean is decided below. Needs gradio.
"""

import os

# Gradio reads them when it is imported; its files go to a folder of the page's own.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": ""}
