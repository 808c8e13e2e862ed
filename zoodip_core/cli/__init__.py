"""The command line: ``python -m zoodip_core``."""
