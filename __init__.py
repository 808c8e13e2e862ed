"""ZOODiP for ComfyUI: nodes that teach Stable Diffusion a new subject with forward passes only.

ComfyUI imports this file from ``custom_nodes/``. Whoever imports it otherwise (a test runner that takes the
repository for a package, say) gets nothing.
"""

if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
