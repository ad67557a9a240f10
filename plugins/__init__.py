"""The built-in plugins, found through entry points as anybody's are; installed as ``engine.plugins``."""
