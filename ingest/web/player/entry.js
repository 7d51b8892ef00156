// The pages use only the player's class from the package.
export { default as Player } from "rrweb-player";
import "rrweb-player/dist/style.css";
