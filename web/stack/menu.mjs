/** A menu that opens over the page, worked by pointer or keys. */

import { adoptStyle, make, makeButton } from "../shared/dom.mjs";

await adoptStyle("./menu.css", import.meta.url); // the menu is never seen without its look

/**
 * What can be done; `isOff`: not here, for the reason that `hint` gives. Null is a line between groups, a text alone the title of one.
 *
 * @typedef {{text: string, act: () => void, hint?: string, isOff?: boolean} | string | null} Entry
 */

const GAP = 4;

/**
 * Offer what can be done, until one thing is done or a person turns to something else.
 *
 * @param {{x: number, y: number, top?: number}} place of its corner on the page; `top`: where what it must not cover begins
 * @param {HTMLElement} home has the focus afterwards, and says that it has a menu
 * @param {string} label
 * @param {Entry[]} entries
 */
export function openMenu(place, home, label, entries) {
  const menu = make("div", "locksmith-menu");
  const ended = new AbortController();
  const close = () => {
    if (ended.signal.aborted) return;
    ended.abort();
    menu.remove();
    home.setAttribute("aria-expanded", "false");
  };
  menu.append(...entries.map((entry) => itemOf(entry, () => (close(), home.focus({ preventScroll: true })))));
  menu.setAttribute("role", "menu");
  menu.setAttribute("aria-label", label);
  menu.popover = "manual"; // browsers close an automatic one when the button that opened it by a right-click is let go
  document.body.append(menu);
  menu.showPopover();
  lay(menu, place);
  home.setAttribute("aria-expanded", "true");
  menu.addEventListener("keydown", (event) => takeKey(event, menu, close, home));
  menu.addEventListener("contextmenu", (event) => event.preventDefault());
  menu.addEventListener("focusout", ({ relatedTarget }) => menu.contains(/** @type {Node | null} */ (relatedTarget)) || close());
  for (const name of ["pointerdown", "wheel"]) {
    const leave = (/** @type {Event} */ event) => menu.contains(/** @type {Node} */ (event.target)) || close();
    document.addEventListener(name, leave, { capture: true, passive: true, signal: ended.signal });
  }
  window.addEventListener("blur", close, { signal: ended.signal });
  itemsOf(menu)[0]?.focus();
}

/**
 * @param {Entry} entry
 * @param {() => void} close gives the focus back, which what is done may then take
 */
function itemOf(entry, close) {
  if (!entry) {
    const line = make("div", "locksmith-menu-line");
    line.setAttribute("role", "separator");
    return line;
  }
  if (typeof entry === "string") return make("div", "locksmith-menu-title", entry);
  const item = makeButton("locksmith-menu-item", entry.text, () => {
    if (entry.isOff) return;
    close();
    entry.act();
  });
  item.setAttribute("role", "menuitem");
  item.tabIndex = -1;
  item.title = entry.hint ?? "";
  if (entry.isOff) item.setAttribute("aria-disabled", "true"); // can be reached: its hint says why
  item.addEventListener("pointerenter", () => item.focus({ preventScroll: true }));
  return item;
}

/**
 * @param {HTMLElement} menu
 * @param {{x: number, y: number, top?: number}} place
 */
function lay(menu, { x, y, top = y }) {
  const { width, height } = menu.getBoundingClientRect();
  const isBelow = y + height + GAP <= innerHeight;
  menu.style.left = `${Math.max(GAP, Math.min(x, innerWidth - width - GAP))}px`;
  menu.style.top = `${Math.max(GAP, isBelow ? y : top - height)}px`;
}

/**
 * @param {HTMLElement} menu
 * @returns {HTMLElement[]}
 */
function itemsOf(menu) {
  return [.../** @type {NodeListOf<HTMLElement>} */ (menu.querySelectorAll("[role=menuitem]"))];
}

/**
 * @param {KeyboardEvent} event
 * @param {HTMLElement} menu
 * @param {() => void} close
 * @param {HTMLElement} home
 */
function takeKey(event, menu, close, home) {
  event.stopPropagation(); // none of these keys is for the canvas
  const items = itemsOf(menu);
  const at = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const places = /** @type {Record<string, number>} */ ({ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 });
  if (event.key in places) items.at(places[event.key] % items.length)?.focus();
  else if (event.key === "Escape" || event.key === "Tab") {
    close();
    home.focus({ preventScroll: true });
  } else if (event.key.length === 1 && event.key !== " ") {
    const later = [...items.slice(at + 1), ...items.slice(0, at + 1)];
    later.find((item) => item.textContent?.toLowerCase().startsWith(event.key.toLowerCase()))?.focus();
    return;
  } else return;
  event.preventDefault();
}
