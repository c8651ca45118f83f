/** Asks before a swap which loaders will have more to show than their line: what is wrong with their files. */

import { allNodes } from "../shared/graph.mjs";
import { listedAs } from "../shared/names.mjs";
import { previewOf, textOf, wiringOf } from "../preview/preview.mjs";
import { lineOfFile } from "../report/line.mjs";
import { SINGLES } from "./loaders.mjs";

const LORA_NAME = "lora_name";

/**
 * @param {import("./plan.mjs").Wanted} isWanted
 * @param {string[]} listed
 * @returns {Promise<Set<string>>} "<the graph's id> <the node's>"; what the server does not tell is not among them
 */
export async function troubled(isWanted, listed) {
  const places = [...allNodes()].map(async (node) => {
    const place = `${node.graph?.id} ${node.id}`;
    const file = node.type in SINGLES && isWanted(String(node.graph?.id), String(node.id)) ? listedAs(textOf(node, LORA_NAME), listed) : "";
    return file && (await isWrong(file, wiringOf(node))) ? place : "";
  });
  return new Set((await Promise.all(places)).filter(Boolean));
}

/**
 * @param {string} file
 * @param {import("../preview/preview.mjs").Wiring} wiring
 */
async function isWrong(file, wiring) {
  try {
    const { cautions, sentences } = lineOfFile(await previewOf(file, wiring));
    return cautions.length + sentences.length > 0;
  } catch {
    return false;
  }
}
