"""What is done on the machine where jobs run: the standard library alone, so that it can be sent there."""
