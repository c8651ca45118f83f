/** What web/ takes from the front end: two modules, and the one global it needs. */

type HostApp = import("@comfyorg/comfyui-frontend-types").ComfyApp;
type HostExtension = import("@comfyorg/comfyui-frontend-types").ComfyExtension;
type HostSetting = NonNullable<HostExtension["settings"]>[number];

/** The front end's own type of a setting knows no id but those of its own settings. */
type OurSetting = Omit<HostSetting, "id"> & { id: `loralocksmith.${string}` };
type OurExtension = { [Name in keyof HostExtension as Exclude<Name, "settings">]: HostExtension[Name] } & { settings?: OurSetting[] };

declare module "*/scripts/app.js" {
  export const app: Omit<HostApp, "registerExtension"> & { registerExtension(extension: OurExtension): void };
}

declare module "*/scripts/api.js" {
  export const api: import("@comfyorg/comfyui-frontend-types").ComfyApi;
}

/** The part of it that web/ may use; its own type is not among those that the front end exports. */
declare var LiteGraph: {
  readonly vueNodesMode: boolean;
  readonly registered_node_types: Record<string, unknown>;
  readonly NODE_TITLE_HEIGHT: number;
  createNode(type: string): HostApp["rootGraph"]["nodes"][number] | null;
};
