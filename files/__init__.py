"""Files on disk: headers, hashes, writing whole or not at all. Standard library only."""
