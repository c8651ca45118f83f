/** Reads names: those of LoRA files, whose folders Windows separates the other way (workflows travel between systems), and of trainers. */

/** @param {string} name */
function withSlashes(name) {
  return name.replaceAll("\\", "/");
}

/**
 * The name the server lists a file under.
 *
 * @param {string} name as a workflow has it
 * @param {string[]} listed
 * @returns {string} "" where it is not listed
 */
export function listedAs(name, listed) {
  if (listed.includes(name)) return name;
  return listed.find((other) => withSlashes(other) === withSlashes(name)) ?? "";
}

/**
 * Whether a name on a node stands for the file a report is of.
 *
 * @param {string} name
 * @param {unknown} file as the server lists it
 * @param {string[]} listed
 */
export function isNameOf(name, file, listed) {
  if (typeof file !== "string") return false;
  return file === name || (!listed.includes(name) && withSlashes(file) === withSlashes(name));
}

/**
 * The tool that wrote a file, in English; "" where nothing tells it.
 *
 * @param {{trainer?: string}} told of a file
 * @returns {string}
 */
export function trainerOf({ trainer = "" }) {
  return trainer === "cannot tell" ? "" : trainer;
}
