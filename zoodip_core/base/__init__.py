"""What everything else may lean on: errors, files, names, events, randomness. It imports nothing else of ours."""
