"""Self-supervised methods, one per file; importing a file registers its method."""

if __name__ != "ssl_zoo.methods":
    # A second copy of a module would register its method twice, under two classes that no isinstance connects.
    raise ImportError(f"import this package as ssl_zoo.methods, not as {__name__}")
