"""How LoRAs act on a model: what the input `mode` may say."""

AUTO, PATCH, BYPASS = "auto", "patch", "bypass"
