"""One executor for each back end, behind the protocol in base.py."""
