"""Tests of aesthetic/ui/."""

# What gradio leaves open or calls, for gradio to mend: an event loop for each lock, /dev/null for each tracked bar.
GRADIO = (
    "ignore:unclosed event loop:ResourceWarning",
    "ignore:unclosed <socket.socket .*family=1, type=1:ResourceWarning",  # of these loops
    "ignore:unclosed file .*/dev/null:ResourceWarning",
    "ignore::DeprecationWarning:gradio.*",
)
