// A headset with one controller, as far as our page asks: it is where `window.xr` says.
window.xr = { squeeze: false, trigger: 0, at: [0, 1.4, -0.4], turn: [0, 0, 0, 1] };
const hand = { gripSpace: {}, gamepad: { buttons: [{}, {}] } };
class Session extends EventTarget {
  inputSources = [hand];
  renderState = { baseLayer: { framebuffer: null } };
  visibilityState = "visible";
  updateRenderState() {}
  async requestReferenceSpace() { return {}; }
  requestAnimationFrame(draw) {
    setTimeout(() => {
      const { trigger, squeeze, at: [x, y, z], turn: [a, b, c, d] } = window.xr;
      hand.gamepad.buttons = [{ value: trigger, pressed: trigger > 0.5 }, { pressed: squeeze }];
      const transform = { position: { x, y, z }, orientation: { x: a, y: b, z: c, w: d } };
      draw(performance.now(), { getPose: () => ({ emulatedPosition: false, transform }) });
    }, 14);
  }
}
window.XRWebGLLayer = class {};
HTMLCanvasElement.prototype.getContext = () => ({ bindFramebuffer() {}, clearColor() {}, clear() {} });
Object.defineProperty(navigator, "xr", {
  value: { isSessionSupported: async kind => kind === "immersive-vr", requestSession: async () => new Session() },
});
