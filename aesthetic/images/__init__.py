"""Images as files, with PIL and no torch: uploads and archives with limits, init image and mask, metadata, grids.

What is done with them in latent space is in pipeline/img2img.py.
"""
