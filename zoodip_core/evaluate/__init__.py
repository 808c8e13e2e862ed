"""How good a token is: CLIP and DINOv2 scores of what it draws."""
