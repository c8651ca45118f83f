/** A dialog over the page, which goes with Escape and with a click beside it. */

import { adoptStyle, make } from "../shared/dom.mjs";
import "./text.mjs"; // first, as the dialog has its own ways with some of it

await adoptStyle("./details.css", import.meta.url); // the dialog is never seen without its look

/** What the canvas would take as its own while it is not even seen. */
const NOT_FOR_THE_CANVAS = ["keydown", "keyup", "copy", "cut", "paste", "wheel"];

/**
 * @param {string} label
 * @returns {{dialog: HTMLDialogElement, closed: AbortSignal}} not shown yet
 */
export function makeDialog(label) {
  const dialog = make("dialog", "locksmith-details");
  dialog.setAttribute("aria-label", label);
  for (const name of NOT_FOR_THE_CANVAS) dialog.addEventListener(name, (event) => event.stopPropagation());
  const closed = new AbortController();
  const before = document.activeElement;
  dialog.addEventListener("toggle", ({ target }) => {
    if (target !== dialog || dialog.matches(":popover-open")) return;
    closed.abort();
    dialog.remove();
    focusAgain(before);
  });
  dialog.popover = "auto"; // a modal one would have the browser go through the whole page
  return { dialog, closed: closed.signal };
}

/**
 * Give the focus back, which browsers do only for a dialog that is not in another; else keys would be the canvas' own.
 *
 * @param {Element | null} before what had it
 */
function focusAgain(before) {
  if (document.activeElement === document.body && before instanceof HTMLElement) before.focus();
}
