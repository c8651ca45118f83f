/** What the front end of this pack says, in the front end's language; English where a language has no words. */

import { app } from "../../../scripts/app.js";
import { ENGLISH } from "./en.mjs";
import { CHINESE } from "./zh.mjs";

/** @type {Record<string, Record<string, string>>} */
const WORDS = { en: ENGLISH, zh: CHINESE };

/**
 * The text for a key in the front end's language, with {name} replaced by fill.name.
 *
 * @param {string} key
 * @param {Record<string, string | number>} [fill]
 * @returns {string}
 */
export function say(key, fill = {}) {
  const locale = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
  const words = WORDS[locale] ?? WORDS[locale.split("-")[0]] ?? ENGLISH;
  return (words[key] ?? ENGLISH[key]).replace(/\{(\w+)\}/g, (_, name) => String(fill[name] ?? ""));
}

/** @param {string} text of the server, which begins in the middle of a sentence and has no full stop */
export function asSentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}
