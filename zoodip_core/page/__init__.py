"""The web page, standalone and in the webuis. gradio is imported here alone."""
