"""What ``penstock top`` consists of: ``view`` says what is shown, ``feed`` asks the daemon, ``app`` draws.

Only ``penstock top`` imports these, since Textual takes its time.
"""
