"""The menu of a node in the real front end, drawn either way."""

from __future__ import annotations

from front_end import FrontEnd


def open_node_menu(front_end: FrontEnd, node: int) -> None:
    """Click a node's title with the right button, as a person does."""
    title = front_end.page.locator(f'[data-node-id="{node}"] [data-testid="node-title"]')
    if title.count():
        title.click(button="right")
        return
    box = front_end.node_box(node)
    # Not in the middle, where a link crosses the title with its mark, which has a menu of its own.
    front_end.page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] - 10, button="right")


def choose_in_menu(front_end: FrontEnd, words: str) -> None:
    """Choose an entry; the button over a selected node may show the same words as its hint."""
    front_end.page.locator(".litemenu-entry, .p-menu, .p-contextmenu, [role=menu]").get_by_text(
        words, exact=True
    ).click()
