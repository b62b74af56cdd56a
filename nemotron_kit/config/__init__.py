"""Command tree → ConfigStore → one composed config: schemas, job files, resolvers, typed conversion."""
