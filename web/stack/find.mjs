/** Finds files by words of their names, the best first, folder by folder. */

import { folderAndTitle } from "./rows.mjs";

/**
 * The files that have all words in their names: those first that have them as whole words, and in the title rather than in the
 * folder; of equal ones those of one folder stay together, files outside of folders first.
 *
 * @param {string[]} files
 * @param {string} query
 * @returns {string[]}
 */
export function found(files, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const costs = [];
  for (const file of files) {
    const text = file.toLowerCase();
    const [folder] = folderAndTitle(text);
    if (!words.every((word) => text.includes(word))) continue;
    costs.push({ file, folder, cost: sum(words, (word) => costOf(word, text, folder.length)) });
  }
  return costs.sort((a, b) => a.cost - b.cost || compare(a.folder, b.folder)).map(({ file }) => file);
}

/**
 * @param {string} word
 * @param {string} text
 * @param {number} start of the title
 */
function costOf(word, text, start) {
  const [title, anywhere] = [isWhole(word, text, start), isWhole(word, text, 0)];
  return title ? 0 : anywhere ? 1 : text.includes(word, start) ? 2 : 3;
}

/**
 * Whether a word stands somewhere between what are no letters or no digits: 60 in `flux60-v2`, not in `flux600`.
 *
 * @param {string} word
 * @param {string} text
 * @param {number} start
 */
function isWhole(word, text, start) {
  const [first, last] = [kindOf(word[0]), kindOf(word[word.length - 1])];
  for (let at = text.indexOf(word, start); at >= 0; at = text.indexOf(word, at + 1)) {
    const [before, after] = [kindOf(text[at - 1]), kindOf(text[at + word.length])];
    if ((!before || before !== first) && (!after || after !== last)) return true;
  }
  return false;
}

/**
 * @param {string | undefined} sign
 * @returns {"" | "digit" | "letter"}
 */
function kindOf(sign = "") {
  return /\p{N}/u.test(sign) ? "digit" : /\p{L}/u.test(sign) ? "letter" : "";
}

/**
 * @param {string} a
 * @param {string} b
 */
function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * @template One
 * @param {One[]} all
 * @param {(one: One) => number} valueOf
 */
function sum(all, valueOf) {
  return all.reduce((total, one) => total + valueOf(one), 0);
}
