// Starts the SDK. Nothing is masked except the card number, because this page has no secrets.

const { dsn, release } = document.documentElement.dataset;

/** Notifies the shop that the SDK has classified a click to which the page did not react. */
function announce(event) {
  if (event.data.payload?.category === "ui.slowClickDetected") dispatchEvent(new Event("verdict"));
  return event;
}

Sentry.init({
  dsn,
  release,
  environment: "trial",
  tracesSampleRate: 1,
  replaysSessionSampleRate: 1,
  integrations: [
    Sentry.browserTracingIntegration(),
    Sentry.replayCanvasIntegration(),
    Sentry.replayIntegration({
      minReplayDuration: 0, // by default, the first 5 seconds of a session are not sent
      maskAllText: false,
      maskAllInputs: false,
      maskAttributes: [],
      blockAllMedia: false,
      beforeAddRecordingEvent: announce,
      slowClickIgnoreSelectors: ["#watch"], // it waits, and must not look dead
      networkDetailAllowUrls: [location.origin],
      networkCaptureBodies: true,
      networkRequestHeaders: ["X-Cart"],
      networkResponseHeaders: ["X-Stock"],
    }),
  ],
});
Sentry.setUser({ id: "you", username: "you" });
Sentry.setTag("page", "trial shop");
