"""One file a back end; each implements the protocol in base.py, and one suite of tests runs against all of them."""
