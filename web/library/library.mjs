/** The tab of the sidebar that shows every LoRA in the folders. */

import { app } from "../../../scripts/app.js";
import { make, makeButton, readStyle } from "../shared/dom.mjs";
import { lazily } from "../shared/lazy.mjs";
import { Away, whenServerIsBack } from "../shared/server.mjs";
import { say } from "../i18n/words.mjs";

const TAB = "loralocksmith.library";

/** @typedef {{shelf: import("./shelf.mjs").Shelf, make: () => import("./view.mjs").LibraryView}} Page */

/** All that only the open page needs is loaded with it. */
const loadView = /** @type {() => Promise<typeof import("./view.mjs")>} */ (lazily("./view.mjs", import.meta.url));
const loadShelf = /** @type {() => Promise<typeof import("./shelf.mjs")>} */ (lazily("./shelf.mjs", import.meta.url));

/** @type {Page | undefined} once it is loaded */
let page;
/** @type {string} the file that is to be shown once the page is there */
let wanted = "";
/** @type {import("./view.mjs").LibraryView | undefined} the page while it is open */
let view;
let planned = 0;
/** @type {HTMLElement | undefined} where the page is, or will be once it is loaded */
let home;

function update() {
  planned = 0;
  view?.follow();
}

/**
 * The front end calls this again whenever it draws the place anew, which may still hold another tab's page.
 *
 * @param {HTMLElement} place
 */
async function open(place) {
  home = place;
  try {
    page = await loadPage();
  } catch {
    if (home === place) place.replaceChildren(makeExcuse(place));
    return;
  }
  if (home !== place || (view && view.element.parentNode === place)) return;
  view?.end();
  view = page.make();
  place.replaceChildren(view.element);
  view.update();
  void page.shelf.open();
  if (wanted) view.reveal(wanted);
  wanted = "";
}

/**
 * Open the page at a file, with its details.
 *
 * @param {string} file as the loras folders list it
 */
export function showInLibrary(file) {
  if (view?.element.isConnected) return view.reveal(file);
  wanted = file;
  const manager = /** @type {any} */ (app.extensionManager);
  (manager.sidebarTab ?? manager).toggleSidebarTab(TAB);
}

function close() {
  home = undefined;
  view?.end();
  view = undefined;
  page?.shelf.stop();
}

/** After the server was away. */
function recover() {
  if (view?.element.isConnected) view.recover();
  else if (home) void open(home);
}

/**
 * What stands in the place of a page that cannot be loaded.
 *
 * @param {HTMLElement} place
 */
function makeExcuse(place) {
  const words = make("p", "", new Away().message);
  words.setAttribute("role", "alert");
  const excuse = make("section", "locksmith-library-away", words, makeButton("locksmith-copy", say("retry"), () => void open(place)));
  excuse.setAttribute("aria-label", say("library"));
  return excuse;
}

/** @returns {Promise<Page>} */
async function loadPage() {
  if (page) return page;
  const [{ LibraryView }, { Shelf }, style] = await Promise.all([loadView(), loadShelf(), readStyle("./library.css", import.meta.url)]);
  if (page) return page; // was loaded meanwhile
  const shelf = new Shelf(() => (planned ||= requestAnimationFrame(update)));
  return { shelf, make: () => new LibraryView(shelf, style) };
}

/** Have the host call what stands here. */
export function register() {
  app.registerExtension({
    name: TAB,

    setup() {
      const manager = /** @type {any} */ (app.extensionManager);
      (manager.sidebarTab ?? manager).registerSidebarTab({
        id: TAB,
        icon: "pi pi-list-check",
        title: say("library"),
        label: say("libraryLabel"),
        tooltip: say("library"),
        type: "custom",
        render: (/** @type {HTMLElement} */ place) => void open(place),
        destroy: close,
      });
      whenServerIsBack(recover);
    },

    /** After the list of files was read anew. */
    refreshComboInNodes() {
      if (view?.element.isConnected) void page?.shelf.refresh();
    },
  });
}
