// The part of the SDK that the shop page uses. The script defines it as the global `Sentry`.
export {
  addBreadcrumb,
  browserTracingIntegration,
  captureException,
  getReplay,
  init,
  replayCanvasIntegration,
  replayIntegration,
  setTag,
  setUser,
} from "@sentry/browser";
