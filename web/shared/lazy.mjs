/** Loads code when it is first wanted, and anew where that failed: a server that was away is no reason to load the page again. */

/**
 * A function that gives a module; once it is there, always the same.
 *
 * @param {string} name of a file beside the one that asks
 * @param {string} base `import.meta.url` of the one that asks
 * @returns {() => Promise<any>} rejects while the server is away
 */
export function lazily(name, base) {
  /** @type {Promise<any> | undefined} */
  let module;
  let failed = 0;
  return () => {
    // Browsers keep the failure under the address, so that each further try needs another.
    module ??= import(`${new URL(name, base)}${failed ? `?again=${failed}` : ""}`).catch((fault) => {
      failed += 1;
      module = undefined;
      throw fault;
    });
    return module;
  };
}
