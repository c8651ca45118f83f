"""What a file holds and what loads, as facts and as text. Standard library only."""
