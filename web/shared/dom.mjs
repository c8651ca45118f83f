/** Makes document nodes of plain parts. */

import { whenServerIsBack } from "./server.mjs";
import { say } from "../i18n/words.mjs";

const SECONDS_TOLD = 1.5;

/**
 * An element with a class and children; a string among them is text, never markup.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} name of its class, or several with spaces between
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/**
 * A button that does something.
 *
 * @param {string} name of its class
 * @param {string} text
 * @param {() => void} act
 * @returns {HTMLButtonElement}
 */
export function makeButton(name, text, act) {
  const button = make("button", name, text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/**
 * @param {string} name of a file beside the one that asks
 * @param {string} base `import.meta.url` of the one that asks
 * @returns {Promise<string>} rejects while the server is away
 */
export async function readStyle(name, base) {
  const answer = await fetch(new URL(name, base));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.text();
}

/**
 * Give the page a look of ours, once, beside the page's own sheets, which belong to all packs.
 *
 * @param {string} name of a style sheet beside the file that asks
 * @param {string} base `import.meta.url` of the file that asks
 */
export async function adoptStyle(name, base) {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  const wait = new AbortController();
  const fill = async () => {
    try {
      sheet.replaceSync(await readStyle(name, base));
      wait.abort();
    } catch {
      // The server is away: it is asked again when it is back.
    }
  };
  whenServerIsBack(() => void fill(), wait.signal);
  await fill();
}

/**
 * Put a text on the clipboard; browsers give pages from other machines without https only the older way.
 *
 * @param {string} text
 * @param {HTMLElement} home of the field the older way needs for a moment
 * @returns {Promise<boolean>} whether it is there
 */
export async function copyText(text, home) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = Object.assign(make("textarea", "locksmith-clipboard"), { value: text });
    home.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

/**
 * A button that copies a text and says so for a moment.
 *
 * @param {string} name of its class
 * @param {string} label
 * @param {string} text
 * @param {HTMLElement} home
 */
export function copyButton(name, label, text, home) {
  const button = makeButton(name, label, async () => {
    const copied = await copyText(text, home);
    button.textContent = say(copied ? "copied" : "notCopied");
    setTimeout(() => (button.textContent = label), SECONDS_TOLD * 1000);
  });
  button.setAttribute("aria-live", "polite");
  return button;
}
