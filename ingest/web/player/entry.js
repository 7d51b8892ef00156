// What the pages take from the package: the player's class, nothing else.
export { default as Player } from "rrweb-player";
import "rrweb-player/dist/style.css";
