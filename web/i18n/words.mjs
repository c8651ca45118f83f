/** What the front end of this pack says, in the front end's language; English where a language has no words. */

import { app } from "../../../scripts/app.js";
import { ENGLISH } from "./en.mjs";
import { CHINESE } from "./zh.mjs";

/** @type {Record<string, Record<string, string>>} */
const WORDS = { en: ENGLISH, zh: CHINESE };
/** @type {Record<string, Record<string, string>>} what was learned, by language */
const MORE = {};

/**
 * Have more to say: parts that are loaded when they are first wanted bring their texts with them.
 *
 * @param {Record<string, Record<string, string>>} more by language
 */
export function learn(more) {
  for (const [name, words] of Object.entries(more)) MORE[name] = { ...MORE[name], ...words };
}

/**
 * The text for a key in the front end's language, with {name} replaced by fill.name.
 *
 * @param {string} key
 * @param {Record<string, string | number>} [fill]
 * @returns {string}
 */
export function say(key, fill = {}) {
  const wanted = language();
  const words = WORDS[wanted]?.[key] ?? MORE[wanted]?.[key] ?? ENGLISH[key] ?? MORE.en[key];
  return words.replace(/\{(\w+)\}/g, (_, name) => String(fill[name] ?? ""));
}

/** @returns {string} the front end's language, such as "zh", also where its locale is "zh-TW" */
export function language() {
  return String(app.extensionManager.setting.get("Comfy.Locale") ?? "en").split("-")[0];
}

/**
 * What the server says in other languages than English: language -> English text -> the text in it.
 *
 * @typedef {Record<string, Record<string, string>> | undefined} Translations
 */

/**
 * A text of the server in the front end's language; the text itself, which is English, where it is not told in that.
 *
 * @param {string} text
 * @param {Translations} translations
 * @returns {string}
 */
export function tell(text, translations) {
  const texts = translations?.[language()];
  return texts && Object.hasOwn(texts, text) ? texts[text] : text;
}

/**
 * @param {string[]} texts
 * @param {Translations} translations
 * @returns {string[]}
 */
export function tellAll(texts, translations) {
  return texts.map((text) => tell(text, translations));
}

/**
 * What a node's output says in other languages.
 *
 * @param {any} output
 * @returns {Translations}
 */
export function translationsOf(output) {
  try {
    return JSON.parse(output.translations[0]);
  } catch {
    return undefined; // of an older run, or none of ours
  }
}

/** @param {string} text of the server, which may begin in the middle of a sentence and have no full stop */
export function asSentence(text) {
  if (!text || /[.\u3002]$/.test(text)) return text;
  return say("sentence", { text: `${text[0].toUpperCase()}${text.slice(1)}` });
}

/**
 * What is wrong and what to do, as sentences.
 *
 * @param {string} fault
 * @param {string} remedy
 */
export function asSentences(fault, remedy) {
  return remedy ? say("sentences", { first: asSentence(fault), second: asSentence(remedy) }) : asSentence(fault);
}
