"""The zeroth-order search: candidates out, losses in. It imports ``base`` alone and never sees a model."""
