/** What the browser keeps for the next visit; without it, where storage is off, full or holds something else, nothing is lost but that. */

/** @typedef {"localStorage" | "sessionStorage"} Storage for all tabs, or for this one */

/**
 * @param {Storage} storage
 * @param {string} key
 * @returns {any} what was stored there; null where there is nothing that can be read
 */
export function fromStorage(storage, key) {
  try {
    return JSON.parse(window[storage].getItem(key) ?? "null");
  } catch {
    return null;
  }
}

/**
 * @param {Storage} storage
 * @param {string} key
 * @param {unknown} value
 */
export function toStorage(storage, key, value) {
  try {
    window[storage].setItem(key, JSON.stringify(value));
  } catch {
    // Nobody is told: it is gone with the page.
  }
}
