/* An option is found as it is typed in a shell: the search reads a leading "-" as "pages without this word", so the two
   of "--overfit" are taken off what is sent to its worker. Type 2 is a query, in Material's SearchMessageType. */
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  if (message && message.type === 2 && typeof message.data === "string")
    message = { ...message, data: message.data.replace(/(^|\s)--+(?=\w)/g, "$1") };
  return post.call(this, message, ...rest);
};
