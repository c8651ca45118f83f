"""What dev.py gets and runs: the environment, ComfyUI, a browser, the front end. Standard library only."""
