/** What the front end of this pack says, in English: by the part that says it. */

/** @type {Record<string, string>} */
export const ENGLISH = {
  // report
  report: "Report of {node}",
  verdict: "Verdict of {node}",
  copy: "Copy",
  copyHint: "Copy the whole report",
  copied: "Copied",
  notCopied: "Not copied",
  cut: "The report goes on. Copy takes the whole of it.",
  // server
  serverAway: "The server did not answer. Is ComfyUI still running?",
};
