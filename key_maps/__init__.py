"""Knowledge about LoRA key names and the small engines that read it: no torch, no ComfyUI, only the standard library."""
