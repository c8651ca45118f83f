"""One file for each adapter kind; the registry finds them by itself."""
