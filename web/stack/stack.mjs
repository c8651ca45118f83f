/** Shows the LoRAs of a stack's node as rows; the workflow keeps them as plain JSON text. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { adoptStyle } from "../shared/dom.mjs";
import { allNodes } from "../shared/graph.mjs";
import { lazily } from "../shared/lazy.mjs";
import { listedAs } from "../shared/names.mjs";
import { panelOf } from "../shared/panel.mjs";
import { forgetPreviews, modelWiredTo, previewOf, wiringOf } from "../preview/preview.mjs";
import { tellAway, whenServerIsBack } from "../shared/server.mjs";
import { heightOfRows, moved, readRows, writeRows } from "./rows.mjs";
import { StackView } from "./view.mjs";
import { say, tellAll, translationsOf } from "../i18n/words.mjs";

/** @typedef {import("./rows.mjs").Row} Row */

const LISTING = "LocksmithLoadAndFixLoRA"; // the node that lists the files
const SHOW_CLIP = "loralocksmith.stack.clip";
const AROUND = 68; // above and below the rows
const MARGIN = 6;
const MIN_WIDTH = 440;
const MIN_WIDTH_OF_MERGE = 560;
const CONNECTED = /(^|\.)lora_\d+$/;
const WAIT = 80; // milliseconds, in which several changes come together

/** @type {WeakMap<object, Stack>} */
const stacks = new WeakMap();
/** @type {string[]} */
let files = [];
/** @type {() => Promise<typeof import("./chooser.mjs")>} */
const loadChooser = lazily("./chooser.mjs", import.meta.url);
/** @type {typeof import("./chooser.mjs").openChooser | undefined} */
let chooser;
/** @type {() => Promise<typeof import("./advice.mjs")>} */
const loadAdvice = lazily("./advice.mjs", import.meta.url);
/** @type {() => Promise<typeof import("./save.mjs")>} */
const loadSave = lazily("./save.mjs", import.meta.url);
/** @type {() => Promise<typeof import("./row_menu.mjs")>} */
const loadRowMenu = lazily("./row_menu.mjs", import.meta.url);
let showClip = false;
let made = 0;
let waiting = 0;

/** What a stack's node shows and keeps. */
export class Stack {
  /**
   * @param {any} node
   * @param {string} name of the input
   * @param {boolean | "asked"} blocks whether rows have weights for parts; true: of a merge, whose rows may name
   *   connected LoRAs too
   */
  constructor(node, name, blocks) {
    this.node = node;
    this.isMerge = blocks === true;
    this.text = "[]";
    this.rows = /** @type {Row[] | null} */ ([]);
    this.asked = "";
    /** @type {Map<string, string[]>} what the last run found doubtful about files */
    this.cautions = new Map();
    this.stop = new AbortController();
    this.view = new StackView({
      change: (index, row, isDone) => this.set(this.list.map((old, at) => (at === index ? row : old)), isDone),
      remove: (index) => this.remove(index),
      choose: (index, anchor) => this.choose(index, anchor),
      offer: (index, place) => void this.offer(index, place),
      settle: () => this.settle(),
      move: (index, to, isDone) => this.set(moved(this.list, index, to), isDone),
      turnAll: (on) => this.set(this.list.map((row) => ({ ...row, on })), true),
      show: () => this.show(),
      toggleClip: () => void app.extensionManager.setting.set(SHOW_CLIP, !showClip),
    }, blocks);
    // A type of its own, because after an undo the Vue nodes keep showing the old node's element for a widget of the same type.
    this.widget = node.addDOMWidget(name, `locksmith_stack_${(made += 1)}`, this.view.element, {
      hideInPanel: true,
      socketless: true,
      margin: MARGIN,
      getMinHeight: () => this.leastHeight,
      getMaxHeight: () => AROUND + 2 * MARGIN + heightOfRows(this.list.length, Infinity),
      getValue: () => this.text,
      setValue: (/** @type {unknown} */ value) => this.read(value),
    });
    this.show();
    if (this.isMerge) void loadSave().then(({ offerToSave }) => offerToSave(this), () => {}); // can be done without
  }

  get list() {
    return this.rows ?? [];
  }

  /** @returns {string[]} what rows call the LoRAs that are connected to the node */
  get connected() {
    const inputs = this.isMerge ? this.node.inputs : [];
    return inputs.filter((/** @type {any} */ input) => input.link != null && CONNECTED.test(input.name))
      .map((/** @type {any} */ input) => input.name.split(".").pop());
  }

  get leastHeight() {
    return AROUND + 2 * MARGIN + heightOfRows(this.list.length);
  }

  /**
   * Take what a workflow, or another extension, gives.
   *
   * @param {unknown} value
   */
  read(value) {
    this.rows = readRows(value);
    this.text = typeof value === "string" ? value : writeRows(this.list);
    this.show();
    if (!globalThis.LiteGraph?.vueNodesMode) this.node.expandToFitContent(); // Vue nodes do so by themselves
  }

  show() {
    this.view.element.style.minHeight = `${this.leastHeight - 2 * MARGIN}px`;
    this.view.show(this.rows, showClip, this.node.title);
    lookSoon();
  }

  /**
   * Take what a person does.
   *
   * @param {Row[]} rows
   * @param {boolean} isDone whether it is a step of its own to undo
   */
  set(rows, isDone) {
    const before = this.leastHeight;
    this.rows = rows;
    this.text = writeRows(rows);
    this.show();
    this.grow(this.leastHeight - before);
    this.widget.callback?.(this.text);
    if (isDone) this.settle();
  }

  /** Make what was done since the last time one step to undo. */
  settle() {
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
  }

  /** @param {number} more height */
  grow(more) {
    if (!more) return;
    const before = this.node.size[1];
    this.node.setSize([this.node.size[0], before + more]);
    panelOf(this.node)?.moveBy(this.node.size[1] - before);
  }

  /** @param {number} index */
  remove(index) {
    const rows = this.list.filter((_, at) => at !== index);
    this.set(rows, true);
    this.view.focus(index, "locksmith-stack-remove");
  }

  /**
   * Let a person choose a row's file, or those of new rows.
   *
   * @param {number} index -1 for new ones
   * @param {Element} anchor
   */
  choose(index, anchor) {
    if (!this.rows) return this.set([], true);
    const current = index < 0 ? "" : this.list[index].name;
    const { connected } = this;
    const label = say(index < 0 ? "stackAdd" : "stackReplace", { file: current });
    const taken = new Set(this.list.map((row) => row.name));
    let at = index;
    const choose = (/** @type {string} */ name) => {
      if (at < 0) this.set([...this.list, { on: true, name, strength: 1 }], true);
      else this.set(this.list.map((row, place) => (place === at ? { ...row, name } : row)), true);
      at = -1; // with Shift, further files are added
    };
    withChooser((open) => open(anchor, { label, files, connected, current, taken, model: modelWiredTo(this.node), choose }));
  }

  /**
   * @param {number} index
   * @param {{x: number, y: number, top?: number}} place
   */
  async offer(index, place) {
    const home = this.view.rows[index].more;
    try {
      (await loadRowMenu()).openRowMenu(this, index, place, home);
    } catch {
      tellAway(home.ariaLabel ?? "");
    }
  }

  /**
   * A row's file as the server lists it; "" where it is gone, and for what is connected.
   *
   * @param {number} index
   */
  fileOf(index) {
    return this.isConnected(index) ? "" : listedAs(this.list[index].name, files);
  }

  /** @param {number} index of a row which may stand for a connected LoRA */
  isConnected(index) {
    return this.isMerge && CONNECTED.test(this.list[index].name);
  }

  /** Ask what the rows' files are, if that is not what was asked last. */
  look() {
    const wiring = wiringOf(this.node);
    const names = this.list.map((row) => row.name);
    const asked = JSON.stringify([names, wiring, this.connected]);
    if (this.asked === asked) return;
    this.asked = asked;
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    names.forEach((name, index) => void this.lookAt(index, name, wiring, signal));
  }

  /**
   * @param {number} index
   * @param {string} name
   * @param {import("../preview/preview.mjs").Wiring} wiring
   * @param {AbortSignal} signal
   */
  async lookAt(index, name, wiring, signal) {
    let answer = null;
    if (this.isMerge && CONNECTED.test(name)) answer = this.connected.includes(name) ? undefined : null;
    else if (listedAs(name, files)) answer = await previewOf(listedAs(name, files), wiring, signal).catch(() => this.askAgain(signal));
    const row = this.view.rows[index];
    if (signal.aborted || !row) return;
    row.showFit(answer, this.cautions.get(name));
    if (row.advised && !row.advise) void loadAdvice().then(({ advise }) => advise(row), () => {}); // can be done without
  }

  /** @param {AbortSignal} signal of what was asked without an answer: it may be told when it is asked again */
  askAgain(signal) {
    if (!signal.aborted) this.asked = "";
  }
}

/**
 * Have the rows of a stack tell what a run found doubtful about their files.
 *
 * @param {object} node
 * @param {any} output of the run
 */
export function tellStack(node, output) {
  const stack = stacks.get(node);
  if (!stack) return;
  let rows = [];
  try {
    rows = JSON.parse(output.report_json[0]).rows ?? [];
  } catch {
    // no report of ours
  }
  const translations = translationsOf(output);
  stack.cautions = new Map(rows.map((/** @type {any} */ { name, cautions }) => [name, tellAll(cautions ?? [], translations)]));
  stack.asked = "";
  lookSoon();
}

/**
 * Add a file to a node's rows, as one step that can be undone.
 *
 * @param {object} node
 * @param {string} name
 * @returns {boolean} whether the node has rows
 */
export function addToStack(node, name) {
  const stack = stacks.get(node);
  if (!stack?.rows) return false;
  stack.set([...stack.rows, { on: true, name, strength: 1 }], true);
  return true;
}

/**
 * Use the list of files, whose code is loaded when it is first wanted; from then on at once, so that no key is lost.
 *
 * @param {(open: typeof import("./chooser.mjs").openChooser) => void} use
 */
function withChooser(use) {
  if (chooser) use(chooser);
  else void loadChooser().then(({ openChooser }) => use((chooser = openChooser)), () => tellAway(say("stackAdd")));
}

/** @returns {Generator<Stack>} */
function* openStacks() {
  for (const node of allNodes()) {
    const stack = stacks.get(node);
    if (stack) yield stack;
  }
}

/** Look soon at what the files of all stacks are. */
function lookSoon() {
  clearTimeout(waiting);
  waiting = window.setTimeout(() => {
    for (const stack of openStacks()) stack.look();
  }, WAIT);
}

/** @param {Record<string, any>} definitions of nodes, as the server gives them */
function listFiles(definitions) {
  const [kind, options] = definitions[LISTING]?.input?.required?.lora_name ?? [[]];
  files = Array.isArray(kind) ? kind : (options?.options ?? []);
}

/** @returns {string[]} the files in the loras folders */
export function listedFiles() {
  return files;
}

/** @param {any} node whose menu offers presets for a loader's layer weights */
function loaderMenu(node) {
  const offer = () => loadRowMenu().then(({ offerForLoader }) => offerForLoader(node, files), () => tellAway(say("menuPresets")));
  return node?.type === LISTING ? [{ content: say("menuPresets"), callback: () => void offer() }] : [];
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: "loralocksmith.stack",

    settings: [
      {
        id: SHOW_CLIP,
        name: "Show the text encoder's strengths in stacks",
        tooltip: "Every row of Load and Fix LoRA (stack) gets a second strength. Rows where it differs always show it.",
        category: ["LoRA Locksmith", "Stack", "Text encoder"],
        type: "boolean",
        defaultValue: false,
        /** @param {boolean} value */
        onChange(value) {
          showClip = value;
          for (const stack of app.rootGraph ? openStacks() : []) stack.show();
        },
      },
    ],

    getCustomWidgets() {
      return {
        /** @param {any} node @param {string} name @param {any} input its type and options */
        LOCKSMITH_LORA_STACK(node, name, input) {
          const stack = new Stack(node, name, input?.[1]?.blocks ?? false);
          stacks.set(node, stack);
          return { widget: stack.widget, minWidth: stack.isMerge ? MIN_WIDTH_OF_MERGE : MIN_WIDTH, minHeight: 1 };
        },
      };
    },

    getNodeMenuItems: loaderMenu,
    addCustomNodeDefs: listFiles,

    async setup() {
      api.addEventListener("graphChanged", lookSoon);
      whenServerIsBack(lookSoon);
      await adoptStyle("./stack.css", import.meta.url);
    },

    afterConfigureGraph: lookSoon,

    /** @param {Record<string, any>} definitions */
    refreshComboInNodes(definitions) {
      listFiles(definitions);
      forgetPreviews();
      for (const stack of openStacks()) {
        stack.asked = "";
        stack.show();
      }
    },
  });
}
