/** Offers to replace LoRA loaders in the open workflow by ours, and ours by the stock one. */

import { app } from "../../../scripts/app.js";
import { allNodes, openGraph } from "../shared/graph.mjs";
import { lazily } from "../shared/lazy.mjs";
import { tellAway } from "../shared/server.mjs";
import { canReplace, makesHook, SINGLES } from "./loaders.mjs";
import { rememberPromoted } from "./promoted.mjs";
import { say } from "../i18n/words.mjs";

/** @typedef {import("./loaders.mjs").Direction} Direction */

/** @type {() => Promise<typeof import("./replace.mjs")>} */
const loadReplace = lazily("./replace.mjs", import.meta.url);
const ID = "loralocksmith.swap";
/** @type {Record<Direction, {all: string, chosen: string, hook: string, icon: string}>} */
const COMMANDS = {
  ours: { all: `${ID}.all`, chosen: `${ID}.chosen`, hook: `${ID}.hook`, icon: "pi pi-sync" },
  stock: { all: `${ID}.all_back`, chosen: `${ID}.chosen_back`, hook: `${ID}.hook_back`, icon: "pi pi-undo" },
};
/** @type {() => Promise<typeof import("./offer.mjs")>} */
const loadOffer = lazily("./offer.mjs", import.meta.url);
/** The workflows whose missing loaders were told of. */
const offered = new Set();
let lastOffered = "";
/** @type {(() => void) | undefined} */
let withdraw;

/**
 * @param {Direction} direction
 * @param {any[]} [chosen] nodes; without them all
 */
async function replace(direction, chosen) {
  const found = await loadReplace().catch(() => tellAway(say("swapAll")));
  await found?.replace(direction, chosen);
}

/** @param {Direction} direction */
function replaceChosen(direction) {
  const chosen = [...app.canvas.selectedItems].filter((item) => canReplace(/** @type {any} */ (item), direction));
  return replace(direction, chosen);
}

/**
 * What the menu of a node offers: to replace it, with all others that are selected with it.
 *
 * @param {any} node
 */
function nodeMenu(node) {
  const direction = directionOf(node);
  if (!direction) return [];
  const isSelected = app.canvas.selectedItems?.has(node);
  const content = say(wordFor(direction, String(node.type)));
  return [null, { content, callback: () => void (isSelected ? replaceChosen(direction) : replace(direction, [node])) }];
}

/**
 * @param {Direction} direction
 * @param {string} type of a node
 */
function wordFor(direction, type) {
  if (makesHook(type)) return direction === "stock" ? "swapHookBack" : "swapHook";
  if (direction === "stock") return "swapOneBack";
  return type in SINGLES ? "swapOne" : "swapOneStack";
}

/**
 * @param {any} node
 * @returns {Direction | undefined}
 */
function directionOf(node) {
  return /** @type {Direction[]} */ (["ours", "stock"]).find((direction) => canReplace(node ?? {}, direction));
}

function canvasMenu() {
  const nodes = [...allNodes()];
  const can = (/** @type {Direction} */ direction) => nodes.some((node) => canReplace(node, direction));
  return [
    ...(can("ours") ? [{ content: say("swapAll"), callback: () => void replace("ours") }] : []),
    ...(can("stock") ? [{ content: say("swapAllBack"), callback: () => void replace("stock") }] : []),
  ];
}

/**
 * @param {Direction} direction
 * @param {string} label
 * @param {string} chosenLabel
 * @param {string} hookLabel where a hook is chosen
 */
function commandsFor(direction, label, chosenLabel, hookLabel) {
  const { all, chosen, hook, icon } = COMMANDS[direction];
  return [
    { id: all, label, icon, function: () => replace(direction) },
    { id: chosen, label: chosenLabel, icon, function: () => replaceChosen(direction) },
    { id: hook, label: hookLabel, icon, function: () => replaceChosen(direction) },
  ];
}

/**
 * Offer once for a workflow to replace its missing loaders, which then need not be installed.
 *
 * @param {any[]} missing node types
 */
async function offer(missing) {
  const [graph, isOpen] = [openGraph(), () => openGraph() === graph];
  const count = missing.filter((each) => canReplace({ type: each.type ?? each }, "ours")).length;
  if (!count || lastOffered !== graph) withdraw?.();
  if (!count || offered.has(graph)) return;
  offered.add(graph);
  lastOffered = graph;
  const found = await loadOffer().catch(() => undefined); // the menus have it too
  withdraw = found?.withdraw;
  if (isOpen()) found?.offerToReplace(count, () => replace("ours"));
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: ID,
    // The front end translates these by locales/*/commands.json and main.json.
    commands: [
      ...commandsFor(
        "ours",
        "Replace all LoRA loaders with Load and Fix LoRA",
        "Replace with Load and Fix LoRA",
        "Replace with Create Hook LoRA (fixed)",
      ),
      ...commandsFor(
        "stock",
        "Replace all Load and Fix LoRA with Load LoRA",
        "Replace with Load LoRA",
        "Replace with Create Hook LoRA",
      ),
    ],
    keybindings: [{ commandId: COMMANDS.ours.all, combo: { key: "f", ctrl: true, alt: true } }],
    menuCommands: [{ path: ["Edit"], commands: [COMMANDS.ours.all, COMMANDS.stock.all] }],

    /** @param {any} item */
    getSelectionToolboxCommands(item) {
      const direction = directionOf(item);
      return direction ? [COMMANDS[direction][makesHook(String(item.type)) ? "hook" : "chosen"]] : [];
    },

    beforeConfigureGraph: rememberPromoted,
    afterConfigureGraph: offer,
    getNodeMenuItems: nodeMenu,
    getCanvasMenuItems: canvasMenu,
  });
}
