"""The networks that condition bijectors, one file per kind."""
