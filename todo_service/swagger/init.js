// A file of its own, because the page's Content-Security-Policy allows no inline script.
SwaggerUIBundle({
  url: '/openapi.yaml',
  dom_id: '#swagger-ui',
  deepLinking: true,
  // The token outlives a reload of the page.
  persistAuthorization: true,
  // Otherwise the page asks validator.swagger.io for a badge.
  validatorUrl: null,
});
