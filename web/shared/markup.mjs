/** Turns a report into document nodes that can do nothing but be read. */

import { app } from "../../../scripts/app.js";

/** What a report may consist of: text, tables and links. Names and metadata in it were written by strangers. */
const ALLOWED_TAGS = new Set(
  "A BLOCKQUOTE BR CODE DEL EM H1 H2 H3 H4 H5 H6 HR LI OL P PRE STRONG TABLE TBODY TD TH THEAD TR UL".split(" ")
);
const ALLOWED_ATTRIBUTES = new Set(["align", "colspan", "start"]);

/**
 * The elements of a Markdown text. The front end's renderer lets pictures, videos, styles and forms through, which could load
 * from elsewhere or cover the page: only their text is kept. A text the renderer cannot take comes back as it is.
 *
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function fromMarkdown(text) {
  let html;
  try {
    html = app.extensionManager.renderMarkdownToHtml(text);
  } catch {
    return fromPlainText(text); // nested deeper than the renderer's recursion goes
  }
  // A parsed document is inert: nothing in it is loaded or run before it is taken over.
  const { body } = new DOMParser().parseFromString(html, "text/html");
  for (const element of body.querySelectorAll("*")) {
    if (ALLOWED_TAGS.has(element.tagName)) restrict(element);
    else unwrap(element);
  }
  const fragment = document.createDocumentFragment();
  while (body.firstChild) fragment.append(body.firstChild);
  return fragment;
}

/**
 * The lines of a text, as they stand.
 *
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function fromPlainText(text) {
  const fragment = document.createDocumentFragment();
  const [first, ...rest] = text.split("\n");
  const verdict = document.createElement("p");
  verdict.textContent = first;
  fragment.append(verdict);
  const others = rest.join("\n").replace(/^\n+|\s+$/g, "");
  if (others) {
    const lines = document.createElement("pre");
    lines.textContent = others;
    fragment.append(lines);
  }
  return fragment;
}

/** @param {Element} element */
function restrict(element) {
  const address = element.tagName === "A" ? element.getAttribute("href") : null;
  for (const { name } of [...element.attributes]) {
    if (!ALLOWED_ATTRIBUTES.has(name)) element.removeAttribute(name);
  }
  if (address && /^https?:\/\//i.test(address)) {
    element.setAttribute("href", address);
    element.setAttribute("target", "_blank");
    element.setAttribute("rel", "noopener noreferrer");
  }
}

/** @param {Element} element */
function unwrap(element) {
  while (element.firstChild) element.before(element.firstChild);
  element.remove();
}
