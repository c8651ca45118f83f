"""From keys to a plan: module names, adapter kinds, strengths, and the weights they go to. Standard
library only.
"""
