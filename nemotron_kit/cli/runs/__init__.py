"""`nemotron runs …`: one file for each group of subcommands."""
