export class CacheBudget {}
