/** Keeps new nodes of this pack as low as stock's: what few people set, and outputs that few people take, fold away until asked for. */

import { app } from "../../../scripts/app.js";
import { panelOf } from "../shared/panel.mjs";

/** The output of our nodes behind which all others fold: the one text people read. */
const LAST_SHOWN = "report";
/** A value of its own in it is no reason to show it: loaders that stood in for stock's have one. */
const QUIET = new Set(["mode"]);
/** What nodes of older workflows show, which the host folded in none of them. */
const SHOWN_BEFORE = new Set(["on_unmatched"]);
const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";
/** What asks a node for an output by its place, its name or its type, and what it gives where there is none. */
const ASKING = ["findOutputByType", "findOutputSlot", "findOutputSlotByType"];

/**
 * What a node folds away: its advanced widgets; all its outputs as they were made, of which it shows the first; whether a workflow
 * fills it just now; whether it is as an older workflow had it.
 *
 * @typedef {{widgets: any[], outputs: any[], isFilling: boolean, isOld: boolean}} Folding
 * @type {WeakMap<object, Folding>}
 */
const foldings = new WeakMap();

/** @param {any} node */
function advancedOf(node) {
  return (node.widgets ?? []).filter((/** @type {any} */ widget) => widget.options?.advanced);
}

/**
 * @param {any} node
 * @returns {any[]} the outputs that it does not show
 */
function awayFrom(node) {
  const folding = foldings.get(node);
  return folding && !folding.isFilling ? folding.outputs.slice(node.outputs.length) : [];
}

/**
 * Do something that makes a node higher or lower, and keep what was dragged.
 *
 * @param {any} node
 * @param {() => void} change
 */
function resizing(node, change) {
  const [before, [width, height]] = [node.computeSize()[1], node.size];
  change(); // the host may make it higher
  const after = node.computeSize()[1];
  node.setSize([width, Math.max(after, height + after - before)]);
  panelOf(node)?.moveBy(node.size[1] - height);
}

/** @param {any} node */
function fold(node) {
  const last = node.outputs.findIndex((/** @type {any} */ output) => output.name === LAST_SHOWN);
  const isFree = () => node.outputs.length > last + 1 && !node.isOutputConnected(node.outputs.length - 1);
  while (last >= 0 && isFree()) node.removeOutput(node.outputs.length - 1);
  markWidgets(node);
}

/** @param {any} node */
function unfold(node) {
  for (const { name, type, label, localized_name, shape, tooltip } of awayFrom(node)) {
    node.addOutput(name, type, { label, localized_name, shape, tooltip });
  }
}

/**
 * Tell the host which widgets to fold away: those that stand as they were given, and of older workflows what they did not show.
 *
 * @param {any} node
 */
function markWidgets(node) {
  const { widgets, isOld } = /** @type {Folding} */ (foldings.get(node));
  for (const widget of widgets) {
    const folds = isAsGiven(node, widget);
    widget.options.advanced = folds && !(isOld && SHOWN_BEFORE.has(widget.name));
    widget.advanced = folds && !isOld; // the classic canvas asks for this
  }
}

/**
 * Have a node fold and unfold its outputs with its advanced widgets, for which the host has a button or a menu's entry.
 *
 * @param {any} node
 * @param {Folding} folding
 */
function follow(node, folding) {
  const host = Object.getOwnPropertyDescriptor(node, "showAdvanced");
  let shown = /** @type {boolean | undefined} */ (false); // saved, so that it is told from older workflows' nodes
  Object.defineProperty(node, "showAdvanced", {
    configurable: true,
    enumerable: false,
    get: () => shown,
    set(/** @type {boolean | undefined} */ value) {
      const isChanged = Boolean(value) !== Boolean(shown);
      const change = () => {
        shown = value;
        host?.set?.call(node, value);
        if (isChanged && !folding.isFilling) (value ? unfold : fold)(node);
      };
      if (isChanged && !folding.isFilling) resizing(node, change);
      else change();
    },
  });
}

/**
 * Have a node show a folded output that is asked for: a link by its place, a search for a type.
 *
 * @param {any} node
 */
function answer(node) {
  for (const name of ASKING) {
    const ask = node[name];
    if (!ask) continue;
    /** @this {any} @param {...any} question */
    node[name] = function (...question) {
      const found = ask.apply(this, question);
      if ((found && found !== -1) || found === 0 || !awayFrom(this).length) return found;
      this.showAdvanced = true;
      return ask.apply(this, question);
    };
  }
  const connect = node.connect;
  /** @this {any} @param {any} slot @param {...any} rest */
  node.connect = function (slot, ...rest) {
    if (typeof slot === "number" && slot >= this.outputs.length && awayFrom(this).length) this.showAdvanced = true;
    return connect.call(this, slot, ...rest);
  };
}

/**
 * Have the classic canvas leave no room for what is folded, which it leaves undrawn.
 *
 * @param {any} node
 */
function leaveNoRoom(node) {
  const { getLayoutWidgets } = node;
  if (!getLayoutWidgets) return;
  /** @this {any} */
  node.getLayoutWidgets = function () {
    return getLayoutWidgets.call(this).filter((/** @type {any} */ widget) => !widget.advanced || this.showAdvanced);
  };
}

/**
 * @param {any} node
 * @param {any} widget
 */
function isAsGiven(node, widget) {
  const input = node.constructor.nodeData?.inputs?.[widget.name];
  return QUIET.has(widget.name) || widget.value === (input?.default ?? input?.options?.[0] ?? "");
}

/**
 * Give saved outputs their names in the front end's language, as the host does with those that a node shows.
 *
 * @param {any[]} saved
 * @param {any[]} made the outputs that the node was made with
 */
function nameAsMade(saved, made) {
  saved.forEach((output, place) => {
    if (made[place]?.name === output.name) output.localized_name = made[place].localized_name;
  });
}

/**
 * Have a node that a workflow fills be as saved, and one of an older workflow show what it did then.
 *
 * @param {any} node
 * @param {Folding} folding
 */
function takeAsSaved(node, folding) {
  const configure = node.configure;
  /** @this {any} @param {any} saved */
  node.configure = function (saved) {
    folding.isFilling = true;
    try {
      nameAsMade(saved?.outputs ?? [], folding.outputs);
      configure.call(this, saved);
      folding.isOld = saved?.showAdvanced == null;
      if (folding.isOld) this.showAdvanced = undefined;
      markWidgets(this);
    } finally {
      folding.isFilling = false;
    }
  };
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: "loralocksmith.fold",

    /** @param {any} node */
    nodeCreated(node) {
      if (!String(node.comfyClass).startsWith("Locksmith") || !advancedOf(node).length) return;
      /** @type {Folding} */
      const folding = { widgets: advancedOf(node), outputs: [...node.outputs], isFilling: false, isOld: false };
      foldings.set(node, folding);
      fold(node);
      node.setSize([node.size[0], node.computeSize()[1]]);
      follow(node, folding);
      answer(node);
      leaveNoRoom(node);
      takeAsSaved(node, folding);
      if (app.extensionManager.setting.get(ALWAYS)) node.showAdvanced = true; // the host has no button for it then
    },
  });
}
