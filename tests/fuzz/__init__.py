"""Every reader of a file or a line that others wrote, fed with damaged and hostile ones.

``samples`` makes sound files, ``mutations`` changes them knowing their formats, ``readers`` is the table of what is
read and how, ``judge`` runs a case and finds fault with it. ``python -m tests.fuzz --cases 100000`` is the big job.
"""
