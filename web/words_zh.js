/** What the front end of this pack says, in Chinese: by the part that says it. */

/** @type {Record<string, string>} */
export const CHINESE = {
  // report
  report: "{node}的报告",
  verdict: "{node}的结论",
  copy: "复制",
  copyHint: "复制完整报告",
  copied: "已复制",
  notCopied: "未能复制",
  cut: "报告未完。“复制”会复制全部内容。",
  // server
  serverAway: "服务器没有响应。ComfyUI 是否仍在运行？",
};
