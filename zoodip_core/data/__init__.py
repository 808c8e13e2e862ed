"""What a user brings: pictures and texts, read and checked, and pictures laid out for people."""
