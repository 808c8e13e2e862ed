"""What a stranger may send: hostile names, files and requests, and proof that none of them gets anywhere.

``python -m tests.attacks`` runs all of it and prints figures; the test files here are part of the default suite.
"""
